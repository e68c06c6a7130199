"""Studies that ship with the package: `bert-fast compare smoke --out=runs/smoke`. Copy one to make your own."""


def arms(depth: int) -> dict[str, dict]:
    """Dense training, each method with its defaults, a shallower model, and two combinations."""
    layer_drop = {"layer_drop.sampling": "systematic"}  # fewer programs to compile
    token_drop = {"token_drop.shortest": 16}  # rows of 8 tokens have none to spare
    return {
        "dense": {},
        "shallower": {"model.depth": depth * 3 // 4},
        "layer dropping": {"methods": "layer_drop", **layer_drop},
        "token dropping": {"methods": "token_drop", **token_drop},
        "EarlyBERT": {"methods": "early_bert"},
        "stacking": {"methods": "stacking"},
        "MSLT": {"methods": "stacking", "stacking.variant": "mslt"},
        "stacking + token dropping": {"methods": "stacking,token_drop", **token_drop},
        "all four": {"methods": "stacking,early_bert,token_drop,layer_drop", **layer_drop, **token_drop},
    }
