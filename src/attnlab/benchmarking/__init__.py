"""Measure what mechanisms cost to train and to serve, against context and batch size.

`bench` is the whole measurement. `targets` gives the models, `point` the places, `workloads`
measures one, `session` measures all, `results` keeps bench.json and shows it,
`reporting.figures.bench` draws it.
"""
