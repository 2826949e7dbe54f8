"""SAM 2's parts as FSSAM uses them: soft masks enter memory, and object scores switch pointers off."""

from __future__ import annotations

import torch
from torch import Tensor

from fss_models.sam2_core.core import MASK_BIAS, MASK_SCALE, Maps, MemoryEntries, Sam2Core


class FssamCore(Sam2Core):
    """A `SAM2Base` with object scores. Letters as in `sam2_core.core`; n = g * g tokens a memory."""

    def trunk_maps(self, pixels: Tensor) -> list[Tensor]:
        """The trunk's four maps, finest first; it stays frozen in every setting."""
        with torch.no_grad():
            maps: list[Tensor] = self.sam.image_encoder.trunk(pixels)
        return maps

    def pyramid(self, trunk_maps: list[Tensor]) -> Maps:
        """Compute `encode`'s maps from the trunk's."""
        levels, _ = self.sam.image_encoder.neck(trunk_maps)
        f0, f1, f2 = levels[: len(levels) - self.sam.image_encoder.scalp]
        return {"f0": self.sam.sam_mask_decoder.conv_s0(f0), "f1": self.sam.sam_mask_decoder.conv_s1(f1), "f2": f2}

    def spatial_memory(self, f2: Tensor, masks: Tensor) -> Tensor:
        """Memories [E, Cm, g, g] of soft masks m [E, R, R] in [0, 1] on f2 [E, C, g, g].

        The mask takes SAM 2's path for given masks: 20 m - 10, then 20 sigmoid(.) - 10, which is steep around 0.5.
        """
        soft = (masks[:, None] * MASK_SCALE + MASK_BIAS).sigmoid()
        scaled = soft * self.sam.sigmoid_scale_for_mem_enc + self.sam.sigmoid_bias_for_mem_enc
        memory: Tensor = self.sam.memory_encoder(f2, scaled, skip_mask_sigmoid=True)["vision_features"]
        return memory

    def pointers(self, maps: Maps, masks: Tensor) -> Tensor:
        """Object pointers [E, C] of soft masks [E, R, R].

        They are `no_obj_ptr` where the mask is empty or the decoder's object score is not positive.
        """
        sam, e = self.sam, len(masks)
        nowhere = masks.new_zeros(e, 1, 2), torch.full((e, 1), -1, dtype=torch.int32, device=masks.device)
        sparse, dense = sam.sam_prompt_encoder(points=nowhere, boxes=None, masks=sam.mask_downsample(masks[:, None]))
        _, _, tokens, scores = sam.sam_mask_decoder(
            image_embeddings=maps["f2"], image_pe=sam.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=False,
            repeat_image=False, high_res_features=[maps["f0"], maps["f1"]])
        seen = (scores[:, :1] > 0) & (masks.flatten(1) > 0).any(dim=1, keepdim=True)
        return torch.where(seen, sam.obj_ptr_proj(tokens[:, 0]), sam.no_obj_ptr)

    def remember_soft(self, maps: Maps, masks: Tensor) -> MemoryEntries:
        """Memories and pointers of soft masks [E, R, R]."""
        return MemoryEntries(features=self.spatial_memory(maps["f2"], masks), pointers=self.pointers(maps, masks))

    def memory_position(self, features: Tensor) -> Tensor:
        """Position code [n, Cm] of every memory: a sine code plus the temporal code of a conditioning frame."""
        place = self.sam.memory_encoder.position_encoding(features[:1]).to(features)[0]
        return place.flatten(1).t() + self.sam.maskmem_tpos_enc[-1].flatten()

    def pointer_tokens(self, pointers: Tensor) -> Tensor:
        """Split pointers into tokens, [E, t, C] -> [E, t * C / Cm, Cm], in the given order."""
        return pointers.unflatten(2, (-1, self.sam.mem_dim)).flatten(1, 2)

    def query_tokens(self, f2: Tensor) -> Tensor:
        """The tokens [E, n, C] that the memory attention starts from, made of f2 [E, C, g, g]."""
        return (f2 + 0.1 * self._grid(f2)).flatten(2).transpose(1, 2)
