"""Tiny models that do more than read text, or do it otherwise than a decoder."""

import transformers as T

SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {"model_type": "llama", "vocab_size": 97, "max_position_embeddings": 64, **SIZES}
VISION = {"image_size": 32, "patch_size": 8, **SIZES, "num_hidden_layers": 3}


def llava() -> T.PreTrainedModel:
    """It reads text of 97 tokens, 64 at most, in two blocks; and sees in three."""
    vision = {"model_type": "clip_vision_model", **VISION}
    config = T.LlavaConfig(text_config=TEXT, vision_config=vision, image_token_index=96)
    return T.LlavaForConditionalGeneration(config).eval()


def t5() -> T.PreTrainedModel:
    """An encoder and a decoder."""
    config = T.T5Config(vocab_size=97, d_model=48, d_kv=12, d_ff=64, num_layers=2, num_heads=4)
    return T.T5ForConditionalGeneration(config).eval()


def vit() -> T.PreTrainedModel:
    """It sees, and reads nothing."""
    return T.ViTForImageClassification(T.ViTConfig(**VISION)).eval()


def falcon(**changes) -> T.PreTrainedModel:
    """Its linear layers are of a subclass."""
    config = T.FalconConfig(vocab_size=97, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, **changes)
    return T.FalconForCausalLM(config).eval()


def mixtral() -> T.PreTrainedModel:
    """Most of its weights are those of fused experts."""
    config = T.MixtralConfig(vocab_size=97, num_key_value_heads=2, **SIZES)
    return T.MixtralForCausalLM(config).eval()
