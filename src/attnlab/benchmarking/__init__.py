"""What a mechanism costs to train and to serve: measured against context and batch.

`targets` says which models, `point` which places, `training` and `serving` how one is measured,
`session` goes through them all, `ledger` keeps bench.json, `figure` and `table` show it.
"""
