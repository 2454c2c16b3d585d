"""Where records come from: files, folders, patterns, a pipe, addresses, hub data sets and tables in memory.

`files` finds and opens, `lines` splits and decodes text, `json_text`, `csv_text` and `tables` read the formats, `hub`
reads data sets through `datasets`, and `plain` turns values into what JSON can hold. agentsys.records checks the rows.
"""
