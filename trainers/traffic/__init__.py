"""Extralonger: traffic a week ahead.

Zhang et al., "Extralonger: Toward a Unified Perspective of Spatial-Temporal Factors for Extra-Long-Term Traffic
Forecasting" (arXiv 2411.00844). Rows are time series; no language model takes part.

Reading order:

    series              values of sensors on an equidistant grid, with a report of corrections
    formats             readers of CSV, Parquet, npz, h5 and JSON files
    calendar, graph     public holidays and school terms; which sensors are neighbors
    splits              windows of a series; training, validation and test part
    metrics             masked errors per lead time, sensor and hour of the week; bootstrap
    baselines           forecasts without a network
    attention, model    Global-Local attention; Extralonger's three routes
    control, neural     separate attention; DLinear, STID and iTransformer
    scaling             the unit of the data and that of a network; the scaled profile, ridge
    fit                 the training loop, bands
    folder, forecast    a trained model on disk; forecasts from it
    report              table, pictures, model card
    experiment, compare from a table of values to a model, and to the table of all models
"""
