"""Real models with weight norm, tiny: the classes of transformers, and a few seeds beside them.

A row builds its model in either form of weight norm, with magnitudes that differ from ‖v‖, so that its
outputs show whether a conversion is right. transformers is imported when the first row of it is built.

What mentions weight norm in transformers 5.24 and is no row, and why:

* Mimi, PocketTTSAudioTokenizer: their convolutions have ``apply_weight_norm()``, and nothing calls it.
* SeamlessM4T's speech encoder, v1 and v2: ``SeamlessM4TConformerPositionalConvEmbedding`` has a normalized
  convolution, and no model has that module. (Their vocoders are rows.)
* HiggsAudioV2Tokenizer: its ``apply_weight_norm()`` is XCodec's, line for line; its module cannot be imported
  without torchaudio.
* HuBERT with ``conv_pos_batch_norm=True``, EnCodec with ``norm_type="time_group_norm"``: turned off.

``WITHOUT`` has those that can be built; a test holds that they have no layer. Wav2Vec2Conformer is a row,
though its encoder has the normalized convolution and never runs it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.helpers.deprecated import deprecated
from tests.helpers.infos import halves

FORMS = ("legacy", "parametrize")
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Row:
    """A model: its class as configured, how weight norm comes to it, and how it is run.

    ``dims`` counts the layers by dim. ``folds`` are globs of the layers that the class does not normalize by
    itself, so that ``from_pretrained`` builds them plain. ``size`` is that of the magnitudes: deep models
    amplify, and outputs should be of order 1. ``saves``: the class has ``save_pretrained``. ``since`` is the
    first transformers that has it.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    dims: Mapping[int | None, int]
    run: Callable[..., Any] = lambda model, *inputs: model(*inputs)
    norm: Callable[[Any], object] = lambda _: None
    folds: tuple[str, ...] = ()
    size: float = 1.0
    saves: bool = True
    since: str = "5"

    @property
    def is_there(self) -> bool:
        """Whether the transformers that is installed has the class."""
        return Version(version("transformers")) >= Version(self.since)

    @property
    def layers(self) -> int:
        return sum(self.dims.values())

    def plain(self) -> nn.Module:
        """The model as its class builds it, with random weights."""
        torch.manual_seed(7)
        return self.build().eval()

    def normed(self, form: str) -> nn.Module:
        """The same with weight norm, in one form; the numbers are the same in both."""
        with weight_norm_is(form):
            model = self.plain()
            self.norm(model)
        scramble(model, self.size)
        return model.eval()

    def outputs(self, model: nn.Module) -> Outputs:
        """What the model computes of the row's inputs."""
        torch.manual_seed(11)
        inputs = self.inputs()
        with torch.no_grad():
            found = self.run(model, *inputs)
        return (found,) if isinstance(found, Tensor) else tuple(found)


@contextmanager
def weight_norm_is(form: str) -> Iterator[None]:
    """Whoever calls torch's new weight norm gets this form.

    Classes of transformers call the legacy function, with the same arguments, where torch has no other;
    XCodec knows the new one only.
    """
    if form == "parametrize":
        yield
        return
    kept = parametrizations.weight_norm
    parametrizations.weight_norm = nn.utils.weight_norm
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*weight_norm.* is deprecated")
            yield
    finally:
        parametrizations.weight_norm = kept


def scramble(model: nn.Module, size: float = 1.0) -> None:
    """Give every layer a v, and a g that is not its norm, sometimes negative: by name, whichever the form."""
    values = model.state_dict()
    generator = torch.Generator().manual_seed(5)
    for _, (g, v) in sorted(halves(values).items()):
        with torch.no_grad():
            values[v].normal_(generator=generator)
            values[g].uniform_(0.5 * size, 1.5 * size, generator=generator)
            values[g].view(-1)[1::5].neg_()


def gap(left: Outputs, right: Outputs) -> float:
    """How far two outputs are apart at most."""
    assert left, "a comparison of nothing is a failure"
    assert [each.shape for each in left] == [each.shape for each in right]
    assert all(each.numel() and torch.isfinite(each).all() for each in (*left, *right))
    return max(float((one - other).abs().max()) for one, other in zip(left, right, strict=True))


# Classes are looked up by name: mypy need not read all of transformers.


def of(name: str) -> Any:
    """A public class of transformers."""
    return _looked_up("transformers", name)


def inside(model: str, name: str) -> Any:
    """A class of transformers that is public in its model's module only."""
    return _looked_up(f"transformers.models.{model}.modeling_{model}", name)


def _looked_up(module: str, name: str) -> Any:
    with deprecated():  # SEW-D and VITS script functions while they are imported
        return getattr(import_module(module), name)


def made(model: str, config: str, /, **options: Any) -> nn.Module:
    found: nn.Module = of(model)(of(config)(**options))
    return found


def tensor(*shape: int) -> Tensor:
    return torch.randn(shape)


def apply(model: Any) -> None:
    model.apply_weight_norm()


# Encoders of speech: one layer each, the convolution that embeds positions, whose norm is taken of each tap.

ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 12,
}


_ENCODER_ONLY = ("num_hidden_layers", "num_attention_heads", "intermediate_size")


def encoder(kind: str, model: str = "Model", /, **options: Any) -> Row:
    return Row(
        f"{kind}{model}",
        lambda: made(f"{kind}{model}", f"{kind}Config", **ENCODER, **options),
        lambda: (tensor(1, 400),),
        {2: 1},
        run=lambda model, audio: model(audio)[0],
    )


def run_conformer(model: Any, audio: Tensor) -> Outputs:
    """The model, and the convolution that its own forward passes by."""
    hidden = model(audio)[0]
    return hidden, model.encoder.pos_conv_embed(hidden)


def speecht5() -> nn.Module:
    return made(
        "SpeechT5ForSpeechToText",
        "SpeechT5Config",
        **{key: value for key, value in ENCODER.items() if key not in _ENCODER_ONLY},
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_layers=1,
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        num_mel_bins=4,
        max_speech_positions=60,
        max_text_positions=20,
        encoder_max_relative_position=8,
    )


def run_speecht5(model: Any, audio: Tensor, text: Tensor) -> Outputs:
    found = model(audio, decoder_input_ids=text)
    return found.encoder_last_hidden_state, found.logits


# HiFi-GAN and its kin: plain until apply_weight_norm().

GAN = {
    "upsample_initial_channel": 8,
    "upsample_rates": (2, 2),
    "upsample_kernel_sizes": (4, 4),
    "resblock_kernel_sizes": (3,),
    "resblock_dilation_sizes": ((1, 3),),
}


def hifigan(kind: str) -> Row:
    return Row(
        kind,
        lambda: made(kind, f"{kind}Config", model_in_dim=6, **GAN),
        lambda: (tensor(1, 12, 6),),
        {0: 12},
        norm=apply,
        folds=("*",),
    )


def vits_config() -> Any:
    return of("VitsConfig")(
        vocab_size=12,
        hidden_size=8,
        num_hidden_layers=1,
        ffn_dim=12,
        flow_size=6,
        spectrogram_bins=9,
        use_stochastic_duration_prediction=False,
        num_speakers=2,
        speaker_embedding_size=4,
        duration_predictor_filter_channels=8,
        prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=2,
        posterior_encoder_num_wavenet_layers=2,
        **GAN,
    )


def run_vits(model: Any, text: Tensor, spectrogram: Tensor, mask: Tensor) -> Outputs:
    """Text to speech, its noise fixed by the seed; and the posterior encoder, which only training runs."""
    speech = model(text, speaker_id=1).waveform
    speaker = model.embed_speaker(torch.tensor([1])).unsqueeze(-1)
    return speech, *model.posterior_encoder(spectrogram, mask, speaker)


def vits_inputs() -> tuple[Tensor, ...]:
    return torch.arange(1, 8).reshape(1, 7), tensor(1, 9, 20), torch.ones(1, 1, 20)


def univnet() -> nn.Module:
    return made(
        "UnivNetModel",
        "UnivNetConfig",
        model_in_channels=4,
        model_hidden_channels=4,
        num_mel_bins=6,
        resblock_kernel_sizes=(3,),
        resblock_stride_sizes=(2,),
        resblock_dilation_sizes=((1, 3),),
        kernel_predictor_num_blocks=1,
        kernel_predictor_hidden_channels=4,
    )


CODE_GAN = {
    "unit_hifi_gan_vocab_size": 12,
    "unit_embed_dim": 4,
    "lang_embed_dim": 2,
    "spkr_embed_dim": 2,
    "vocoder_num_langs": 3,
    "vocoder_num_spkrs": 3,
    "t2u_pad_token_id": 0,
    **GAN,
}


def seamless(version: str) -> Row:
    def build() -> nn.Module:
        config = of(f"SeamlessM4T{version}Config")(
            **CODE_GAN,
        )
        name = f"SeamlessM4T{version}CodeHifiGan"
        model: nn.Module = inside("_".join(filter(None, ("seamless_m4t", version))), name)(config)
        return model

    return Row(
        f"SeamlessM4T{version}CodeHifiGan",
        build,
        lambda: (torch.arange(1, 8).reshape(1, 7), torch.tensor([[1]]), torch.tensor([[2]])),
        {0: 12},
        run=lambda model, *inputs: model(*inputs)[0],
        norm=apply,
        folds=("*",),
    )


# Codecs. Their codes are decisions, so the outputs before the quantizer are compared too.

DAC = {
    "encoder_hidden_size": 4,
    "decoder_hidden_size": 16,
    "downsampling_ratios": (2, 5),
    "n_codebooks": 2,
    "codebook_size": 8,
    "codebook_dim": 3,
}


def run_dac(model: Any, audio: Tensor) -> Outputs:
    latents, found = model.encoder(audio), model(audio)
    return latents, model.decoder(latents), found.projected_latents, found.audio_values


def with_codes(model: nn.Module) -> nn.Module:
    """Random codebooks: those of a new model are zero, and so are all decoded values."""
    for name, value in model.state_dict().items():
        if name.endswith(".embed"):
            value.normal_()
    return model


ENCODEC = {
    "hidden_size": 8,
    "num_filters": 2,
    "upsampling_ratios": (4, 2),
    "num_lstm_layers": 1,
    "codebook_size": 8,
    "codebook_dim": 8,
    "target_bandwidths": (36.0,),
}


def encodec(**options: Any) -> nn.Module:
    return with_codes(
        made(
            "EncodecModel",
            "EncodecConfig",
            **ENCODEC,
            **options,
        )
    )


def run_encodec(model: Any, audio: Tensor) -> Outputs:
    latents = model.encoder(audio)
    return latents, model.decoder(latents), model(audio).audio_values


def xcodec() -> nn.Module:
    return with_codes(
        made(
            "XcodecModel",
            "XcodecConfig",
            acoustic_model_config=of("DacConfig")(**DAC, hidden_size=8).to_dict(),
            semantic_model_config=of("HubertConfig")(**ENCODER).to_dict(),
            codebook_size=8,
            target_bandwidths=(9.6,),
        )
    )


def run_xcodec(model: Any, audio: Tensor) -> Outputs:
    latents = model.acoustic_encoder(audio)
    semantic = model._extract_semantic_features(audio)
    return latents, model.acoustic_decoder(latents), semantic, model(audio).audio_values


# The seeds

Norms = tuple[tuple[str, str, int | None], ...]


def seed(name: str, build: Callable[[], nn.Module], shape: tuple[int, ...], norms: Norms) -> Row:
    """A module of torch's own and what of it is normalized: module, parameter, dim."""

    def norm(model: nn.Module) -> None:
        for module, parameter, dim in norms:
            parametrizations.weight_norm(model.get_submodule(module), parameter, dim)  # type: ignore[arg-type]

    every = [dim for _, _, dim in norms]
    return Row(
        name,
        build,
        lambda: (tensor(*shape),),
        {dim: every.count(dim) for dim in every},
        run=lambda model, x: found[0] if isinstance(found := model(x), tuple) else found,
        norm=norm,
        saves=False,
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 10)
    )


SEEDS = (
    seed("CNN", cnn, (2, 1, 8, 8), (("0", "weight", 0), ("2", "weight", 0), ("5", "weight", 0))),
    seed(
        "RNN",
        lambda: nn.RNN(3, 5, batch_first=True),
        (2, 6, 3),
        (("", "weight_ih_l0", 0), ("", "weight_hh_l0", 0)),
    ),
    seed("Conv1d", lambda: nn.Conv1d(3, 5, 4), (2, 3, 9), (("", "weight", 0),)),
    seed("Linear, dim=None", lambda: nn.Linear(6, 4), (2, 6), (("", "weight", None),)),
    seed("ConvTranspose1d", lambda: nn.ConvTranspose1d(3, 5, 4, 2), (2, 3, 9), (("", "weight", 0),)),
    seed("ConvTranspose2d", lambda: nn.ConvTranspose2d(3, 5, 4, 2), (2, 3, 5, 6), (("", "weight", 0),)),
)

ENCODERS = (
    encoder("Wav2Vec2"),
    encoder("Wav2Vec2", "ForCTC", do_stable_layer_norm=True, feat_extract_norm="layer"),
    encoder("Hubert"),
    encoder("WavLM"),
    encoder("UniSpeech"),
    encoder("UniSpeechSat"),
    encoder("SEW"),
    encoder("SEWD"),
    Row(
        "Wav2Vec2ConformerModel",
        encoder("Wav2Vec2Conformer").build,
        lambda: (tensor(1, 400),),
        {2: 1},
        run=run_conformer,
    ),
    Row(
        "SpeechT5ForSpeechToText",
        speecht5,
        lambda: (tensor(1, 400), torch.tensor([[2, 3, 4]])),
        {2: 1},
        run=run_speecht5,
    ),
)

VOCODERS = (
    hifigan("SpeechT5HifiGan"),
    hifigan("FastSpeech2ConformerHifiGan"),
    Row(
        "VitsHifiGan",  # the decoder of VitsModel, by itself
        lambda: inside("vits", "VitsHifiGan")(vits_config()),
        lambda: (tensor(1, 6, 20), tensor(1, 4, 1)),
        {0: 10},
        norm=apply,
        saves=False,
    ),
    Row("VitsModel", lambda: of("VitsModel")(vits_config()), vits_inputs, {0: 15}, run=run_vits, size=0.5),
    Row(
        "VitsModel, decoder too",
        lambda: of("VitsModel")(vits_config()),
        vits_inputs,
        {0: 25},
        run=run_vits,
        norm=lambda model: model.decoder.apply_weight_norm(),
        folds=("decoder.*",),
        size=0.5,
    ),
    Row(
        "UnivNetModel",
        univnet,
        lambda: (tensor(1, 10, 6), tensor(1, 10, 4)),
        {0: 10},
        run=lambda model, spectrogram, noise: model(spectrogram, noise).waveforms,
        norm=apply,
        folds=("*",),
    ),
    seamless(""),
    seamless("v2"),
)

CODECS = (
    Row(
        "DacModel",
        lambda: made("DacModel", "DacConfig", **DAC),
        lambda: (tensor(1, 1, 60),),
        {0: 36},
        run=run_dac,
        norm=apply,
        folds=("*",),
        size=0.5,
    ),
    Row("EncodecModel", encodec, lambda: (tensor(1, 1, 60),), {0: 20}, run=run_encodec),
    Row(
        "XcodecModel",
        xcodec,
        lambda: (tensor(1, 1, 640),),
        {0: 32, 2: 1},
        run=run_xcodec,
        norm=apply,
        folds=("acoustic_*",),
        size=0.5,
    ),
)

ROWS = (*SEEDS, *ENCODERS, *VOCODERS, *CODECS)

STREAMED = {
    "hidden_size": 8,
    "num_filters": 2,
    "upsampling_ratios": [2, 2],
    "upsample_groups": 8,
    "num_hidden_layers": 1,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
QUANTIZED = {
    "codebook_size": 8,
    "codebook_dim": 8,
    "num_quantizers": 2,
    "vector_quantization_hidden_dimension": 8,
}
SEAMLESS = {
    "vocab_size": 12,
    "hidden_size": 16,
    "feature_projection_input_dim": 8,
    "speech_encoder_layers": 1,
    "speech_encoder_attention_heads": 2,
    "speech_encoder_intermediate_size": 16,
    "decoder_layers": 1,
    "decoder_ffn_dim": 16,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 32,
}

#: Classes that mention weight norm and, configured like this, have none.
WITHOUT: Mapping[str, Callable[[], nn.Module]] = {
    "HubertModel with conv_pos_batch_norm": lambda: made(
        "HubertModel", "HubertConfig", **ENCODER, conv_pos_batch_norm=True
    ),
    "EncodecModel with time_group_norm": lambda: encodec(norm_type="time_group_norm"),
    "MimiModel": lambda: made("MimiModel", "MimiConfig", **STREAMED, **QUANTIZED),
    "PocketTTSAudioTokenizerModel": lambda: made(
        "PocketTTSAudioTokenizerModel",
        "PocketTTSAudioTokenizerConfig",
        **STREAMED,
        latent_stride=2,
        latent_dim=4,
    ),
    "SeamlessM4TForSpeechToText": lambda: made("SeamlessM4TForSpeechToText", "SeamlessM4TConfig", **SEAMLESS),
    "SeamlessM4Tv2ForSpeechToText": lambda: made(
        "SeamlessM4Tv2ForSpeechToText", "SeamlessM4Tv2Config", **SEAMLESS
    ),
}
