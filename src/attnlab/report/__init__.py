"""Results for people: tables, Markdown and figures, from files alone."""
