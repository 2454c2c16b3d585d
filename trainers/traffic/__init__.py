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
"""
