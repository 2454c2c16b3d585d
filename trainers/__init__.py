"""Everything that trains: training rows from traces, trainers on rows, and pre-training on selected text.

Commands (`python trainers/<name>.py --help`), in the order of their use:

    rows            traces -> rows of training examples (Parquet)
    sft             supervised fine-tuning on rows
    step_dpo        DPO on preference pairs of reasoning steps
    teacher         a teacher's top-k log-probabilities, stored once per row
    distill         distillation from stored top-k, or on-policy from a teacher in memory
    warmup_distill  Warmup-Distill (arXiv 2502.11766): DPO on corrected samples before distillation
    miniplm         MiniPLM (arXiv 2410.17215): corpus chunks, scores, difference sampling, pre-training
    export          a trained folder -> one GGUF file
    extralonger     Extralonger (arXiv 2411.00844): traffic a week ahead from a table of counts; no language model
    forecast        the steps after the latest counts, with a folder of `extralonger`

Library modules, in reading order:

    loading, processes                    models by name; the processes of a training
    schedule, output, training            steps and warm-up; the output folder; options and the training loop's frame
    reporting                             metrics, curves, report and model card
    row_files, row_writer, tokenize_rows  Parquet rows, targets to token ids
    row_filter, row_split                 which rows are dropped, and which are for validation
    dpo                                   DPO on token ids
    scorers, topk, score_rows             teachers, what is stored of them, one pass over a row file
    losses, distill_offline, distill_on_policy
    generate, corrections, warmup         sampling, check and correct, the stages of Warmup-Distill
    pretrain/                             MiniPLM: chunks, corpus, nll, scores, difference, train
    gguf_file, gguf_tokenizer, gguf_check
    traffic/                              Extralonger: series, windows, model, training, forecasts

Commands import library modules, never the other way.
"""
