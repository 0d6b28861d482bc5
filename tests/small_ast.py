"""A small AST, as ``save_pretrained`` writes it."""

import torch


def write_ast(transformers, names, *folders):
    """Writes one network with these class names, and its extractor, to folders."""
    config = transformers.ASTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_length=128,
        num_mel_bins=32,
        id2label=dict(enumerate(names)),
    )
    network = transformers.ASTForAudioClassification(config)
    torch.nn.init.normal_(network.classifier.dense.weight)
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=128)
    for folder in folders:
        network.save_pretrained(folder)
        extractor.save_pretrained(folder)
