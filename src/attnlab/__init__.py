"""attnlab: which attention mechanism should my model use? Controlled comparisons with evidence."""
