"""Methods without training, as their released codes go through a test list: one query at a time, supports encoded anew.

A module here has the name of its method, and two functions: `prepare(model)`, called once, and
`segment(model, prepared, supports, masks, query)`, which returns the mask [R, R] bool of `query` [1, 3, R, R] from
`supports` [K, 3, R, R] and their `masks` [K, R, R], all as the model's preprocessing gives them.
"""
