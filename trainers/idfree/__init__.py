"""IDfree-PL: personal models from texts without user identifiers.

Ding et al., "Personalized Language Model Learning on Text Data Without User Identifiers" (arXiv 2501.06062). A user's
device keeps a distribution of embeddings and draws a new one for each upload.

Reading order:

    options, data, published     the options of the command; users' texts and their split; the paper's own data sets
    designs                      families of embedding distributions, their shared prior, draws
    packing, network, backbone   rows of one text side by side; text and embedding in a model; model folders
    devices                      all devices in one batched pass
    central, cloud               training on pooled texts: without users, and with draws of the devices
    baselines, predict           what the method is compared with; predictions
    evaluate, report             accuracy, paired test, gains by entropy; table, pictures and model card
    stages                       the stages of a run, each with a folder
    device                       what runs on a user's device: numpy and the standard library alone
    server, attacks, assistant   the cloud as an HTTP server; what uploads give away; the example graph in Studio
"""
