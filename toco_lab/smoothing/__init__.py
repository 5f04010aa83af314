"""How alike are the tokens? Every over-smoothing metric of the literature, per layer.

    singular_values, grid, pairs, outliers, arithmetic    the mathematics; artifacts: two modes of lengths, or one
       |
    token_view                                            one layer: tokens, attention, and quantities computed once
       |
    formulas, catalogue                                   the metrics: name, formula, source, what each sees
       |
    layers, stack                                         the layers of a model as views; several measured at once
       |
    per_layer                                             the table of any model on given images
       |
    of_runs                                               the same of a run on its validation images: smoothing.csv
       |
    registers                                             an empty token that takes the artifacts of a ViT
       |
    named_models, token_colours, compare                  whole models side by side, on any images

`catalogue.metric_table` lists every metric with its source.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
