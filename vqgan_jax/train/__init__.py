"""Pure state and steps, where arrays live and are kept, and the one impure loop."""
