"""Pages for people: jinja2 templates, and matplotlib plots in the page's own colours."""
