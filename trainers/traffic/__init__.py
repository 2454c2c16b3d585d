"""Extralonger: traffic a week ahead.

Zhang et al., "Extralonger: Toward a Unified Perspective of Spatial-Temporal Factors for Extra-Long-Term Traffic
Forecasting" (arXiv 2411.00844). Rows are time series; no language model takes part.

Reading order:

    series                               values of sensors on an equidistant grid, with a report of corrections
    timestamps, numbers, grid            times and numbers as people write them; from rows to an equidistant grid
    formats, arrays                      readers of CSV and Parquet tables; of npz, h5 and JSON files
    splits                               windows of a series; training, validation and test part
    calendar                             what is known of the future: holidays, school terms, a table of values
    config, options                      names and sizes; the options of the command
    baselines                            forecasts without a network
    graph                                which sensors are neighbors
    metrics                              masked errors per lead time, sensor and hour of the week; bootstrap
    attention, model                     Global-Local attention; Extralonger's three routes and their fusion
    control, neural                      separate attention; DLinear, STID, iTransformer
    scaling, fit                         from the unit of the data to that of a network; the training loop
    folder, forecast, report             the model folder; forecasts; table, pictures and model card
    experiment, compare, zero_shot       from a table to a trained model; beside all baselines; beside fracast
    tool, assistant                      a trained model as a LangChain tool; the example graph in Studio
"""
