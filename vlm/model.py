"""The vision-language model: encoder, projector and decoder put together.

Axes: `B` batch, `S` text length, `M` images of a row, `L` image tokens of a row, `T` tiles of all
images, `N` tokens of a tile, `D` decoder width.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from encoders.vit import VisionEncoder
from projector.mlp import Projector
from vlm.config import VLMConfig
from vlm.decoder.documents import document_mask, document_places
from vlm.decoder.masks import image_token_mask, visible_images
from vlm.decoder.stack import Decoder, ImageContext
from vlm.errors import UserError
from vlm.inputs import ImageInputs, ModelInputs


class VisionLanguageModel(nn.Module):
    """A cross-attention vision-language model.

    Args:
        config: shapes of the three parts.
        image_token_id: id of `<|image|>`, from which on a text token sees an image.
    Raises:
        UserError: the encoder's tower cannot be built, or has another shape than is said.
    """

    def __init__(self, config: VLMConfig, image_token_id: int) -> None:
        super().__init__()
        self.config = config
        self.image_token_id = image_token_id
        try:
            self.encoder = VisionEncoder(config.vision)
        except ValueError as error:
            raise UserError(f"model.vision: {error}") from error
        self.projector = Projector(
            config.projector, config.vision.output_size, config.decoder.hidden_size
        )
        self.decoder = Decoder(config.decoder)

    def forward(self, inputs: ModelInputs) -> Tensor:
        """Return hidden states (B, S, D); `decoder.logits` maps them to the vocabulary."""
        positions, lengths, mask = row_positions(inputs.input_ids), inputs.lengths, None
        if inputs.document_lengths is not None:
            places = document_places(inputs.document_lengths, inputs.input_ids.shape[1])
            positions, lengths = places.positions, places.lengths
            mask = document_mask(places.ids, self.config.decoder.head_size)
        images = None if inputs.images is None else self.image_context(inputs, positions)
        hidden: Tensor = self.decoder(
            inputs.input_ids, positions, images, lengths=lengths, mask=mask
        )
        return hidden

    def image_tokens(self, images: ImageInputs) -> Tensor:
        """Encode and project distinct images: (T, N, D). Those that come encoded are projected."""
        features = images.features
        if features is None:
            features = self.encoder(images.pixels, images.num_tiles, images.aspect_ratio_ids)
        else:  # which may be kept in fewer bits
            features = features.to(next(self.projector.parameters()).dtype)
        projected: Tensor = self.projector(features)
        return projected

    def image_context(self, inputs: ModelInputs, positions: Tensor) -> ImageContext:
        """Encode and project the images of a batch, and say which text tokens see them.

        Args:
            positions: (B, S) int64 of the text tokens.
        """
        assert inputs.images is not None
        images = inputs.images
        tokens, token_image_index = _rows_of_tokens(self.image_tokens(images), images)
        visible = visible_images(
            inputs.input_ids,
            positions,
            self.image_token_id,
            int(images.num_images.max()),
            self.config.image_visibility,
        )
        return ImageContext(tokens, image_token_mask(visible, token_image_index))


def tensor_shapes(config: VLMConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors, without making them."""
    with torch.device("meta"):
        model = VisionLanguageModel(config, image_token_id=0)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def row_positions(input_ids: Tensor) -> Tensor:
    """Positions (B, S) int64 of rows that are one document each."""
    return torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)


def _rows_of_tokens(features: Tensor, images: ImageInputs) -> tuple[Tensor, Tensor]:
    """Sort the tiles' tokens into the rows that show their images.

    Args:
        features: (T, N, D).
    Returns:
        tokens (B, L, D), and the row's image that each belongs to, (B, L) int64, -1 at padding,
        where the tokens are any.
    """
    device = features.device
    tokens_per_image = images.num_tiles * features.shape[1]  # (images,)
    first_token = tokens_per_image.cumsum(0) - tokens_per_image
    # One entry for every time that a row shows an image.
    sizes = tokens_per_image[images.image_index]  # (shown,)
    row = torch.arange(len(images.num_images), device=device).repeat_interleave(images.num_images)
    first_shown = images.num_images.cumsum(0) - images.num_images  # (B,)
    number_in_row = torch.arange(len(row), device=device) - first_shown[row]  # (shown,)
    # One entry for every token shown.
    offset = torch.arange(int(sizes.sum()), device=device)
    offset = offset - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    index = first_token[images.image_index].repeat_interleave(sizes) + offset
    row_sizes = torch.zeros_like(images.num_images).index_add(0, row, sizes).tolist()
    # Integers are padded and one gather follows: padding features would copy them a row at a time.
    index = pad_sequence(list(torch.split(index, row_sizes)), batch_first=True)  # (B, L)
    image_of_token = pad_sequence(
        list(torch.split(number_in_row.repeat_interleave(sizes), row_sizes)),
        batch_first=True,
        padding_value=-1,
    )
    tokens = features.flatten(0, 1).index_select(0, index.flatten())
    return tokens.view(*index.shape, -1), image_of_token
