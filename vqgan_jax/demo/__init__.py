"""The page of `vqgan demo`: `actions` turns requests into pictures, `app` is the page itself."""
