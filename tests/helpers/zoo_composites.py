"""Models of transformers that have another model with weight norm in them, as rows of the zoo.

What is run is the part with the layers, and with it what leads there, where that is fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.helpers import zoo
from tests.helpers.zoo import Outputs, Row, made, of, tensor

__all__ = ["COMPOSITES"]

GPT = {
    "block_size": 16,
    "input_vocab_size": 12,
    "output_vocab_size": 12,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_size": 8,
}


def musicgen() -> nn.Module:
    text = of("T5Config")(vocab_size=12, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2)
    tokens = of("MusicgenDecoderConfig")(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=12, num_codebooks=1,
        pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    model: nn.Module = of("MusicgenForConditionalGeneration")(
        text_encoder=of("T5EncoderModel")(text),
        audio_encoder=of("EncodecModel")(of("EncodecConfig")(**zoo.ENCODEC)),
        decoder=of("MusicgenForCausalLM")(tokens),
    )
    return zoo.with_codes(model)


def bark() -> nn.Module:
    parts = {
        "semantic_config": of("BarkSemanticConfig")(**GPT).to_dict(),
        "coarse_acoustics_config": of("BarkCoarseConfig")(**GPT).to_dict(),
        "fine_acoustics_config": of("BarkFineConfig")(**GPT, n_codes_total=2, n_codes_given=1).to_dict(),
        "codec_config": of("EncodecConfig")(**zoo.ENCODEC).to_dict(),
    }
    return zoo.with_codes(made("BarkModel", "BarkConfig", **parts))


def speech_to_text() -> nn.Module:
    decoder = of("BertConfig")(
        vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        is_decoder=True, add_cross_attention=True, pad_token_id=0,
    )  # fmt: skip
    encoder = of("Wav2Vec2Config")(**zoo.ENCODER)
    model: nn.Module = of("SpeechEncoderDecoderModel")(
        of("SpeechEncoderDecoderConfig").from_encoder_decoder_configs(encoder, decoder)
    )
    return model


def run_speech_to_text(model: Any, audio: torch.Tensor, text: torch.Tensor) -> Outputs:
    found = model(input_values=audio, decoder_input_ids=text)
    return found.encoder_last_hidden_state, found.logits


def seamless() -> nn.Module:
    return made(
        "SeamlessM4TModel",
        "SeamlessM4TConfig",
        **zoo.SEAMLESS,
        encoder_layers=1,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        t2u_vocab_size=12,
        t2u_encoder_layers=1,
        t2u_encoder_ffn_dim=16,
        t2u_encoder_attention_heads=2,
        t2u_decoder_layers=1,
        t2u_decoder_ffn_dim=16,
        t2u_decoder_attention_heads=2,
        **zoo.CODE_GAN,
    )


def fastspeech() -> nn.Module:
    acoustic = of("FastSpeech2ConformerConfig")(
        vocab_size=12, hidden_size=8, num_mel_bins=6, encoder_layers=1, decoder_layers=1,
        encoder_num_attention_heads=2, decoder_num_attention_heads=2, encoder_linear_units=8,
        decoder_linear_units=8, speech_decoder_postnet_layers=1, speech_decoder_postnet_units=8,
        duration_predictor_channels=8, energy_predictor_channels=8, pitch_predictor_channels=8,
    )  # fmt: skip
    vocoder = of("FastSpeech2ConformerHifiGanConfig")(model_in_dim=6, **zoo.GAN)
    model: nn.Module = of("FastSpeech2ConformerWithHifiGan")(
        of("FastSpeech2ConformerWithHifiGanConfig")(
            model_config=acoustic.to_dict(), vocoder_config=vocoder.to_dict()
        )
    )
    return model


def wavtokenizer() -> nn.Module:
    return zoo.with_codes(
        made(
            "WavTokenizerModel",
            "WavTokenizerConfig",
            num_filters=2,
            upsampling_ratios=(4, 2),
            num_lstm_layers=1,
            hidden_size=8,
            codebook_dim=8,
            codebook_size=8,
            decoder_hidden_size=8,
            decoder_intermediate_size=12,
            decoder_num_layers=1,
            decoder_attention_num_groups=2,
        )
    )


COMPOSITES = (
    Row(
        "Musicgen",
        musicgen,
        lambda: (tensor(1, 1, 60),),
        {0: 20},
        run=lambda model, audio: zoo.run_encodec(model.audio_encoder, audio),
        saves=False,  # from_pretrained names only half of the keys that it does not expect
    ),
    Row(
        "Bark",
        bark,
        lambda: (tensor(1, 1, 60),),
        {0: 20},
        run=lambda model, audio: zoo.run_encodec(model.codec_model, audio),
    ),
    Row(
        "SpeechEncoderDecoder",
        speech_to_text,
        lambda: (tensor(1, 400), torch.tensor([[2, 3, 4]])),
        {2: 1},
        run=run_speech_to_text,
    ),
    Row(
        "SeamlessM4T",
        seamless,
        lambda: (torch.arange(1, 8).reshape(1, 7), torch.tensor([[1]]), torch.tensor([[2]])),
        {0: 12},
        run=lambda model, *inputs: model.vocoder(*inputs)[0],
        norm=lambda model: model.vocoder.apply_weight_norm(),
        folds=("vocoder.*",),
        saves=False,  # from_pretrained never says that the vocoder is missing
    ),
    Row(
        "FastSpeech2 with HiFi-GAN",
        fastspeech,
        lambda: (tensor(1, 12, 6),),
        {0: 12},
        run=lambda model, mel: model.vocoder(mel),
        norm=lambda model: model.vocoder.apply_weight_norm(),
        folds=("vocoder.*",),
    ),
    Row(
        "WavTokenizer",
        wavtokenizer,
        lambda: (tensor(1, 1, 64),),
        {0: 10},
        run=lambda model, audio: model.encoder_model.encoder(audio),
        since="5.24",
    ),
)
