"""MiniPLM (arXiv 2410.17215): distillation for pre-training by difference sampling.

Reading order: chunks (documents to chunks), corpus (chunk folders), nll (the score and the loss), scores (each chunk
under one model), difference (difference sampling), train (pre-training). trainers/miniplm.py is the command.
"""
