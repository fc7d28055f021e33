"""What tells one model's weights from another's: a hash over names and bytes."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from vlm.weights.folder import COMPONENTS, folder_tensors, read_folder_config
from vlm.weights.tensors import StoredTensor


def weights_sha256(folder: Path, components: Collection[str] = COMPONENTS) -> str:
    """The sha256 of a whole model's weights, or of some of its components'.

    It is taken over a line for each tensor, sorted by name: our name for it, dtype, shape, and the
    sha256 of its bytes. So it does not depend on how tensors are spread over files, and a
    transformers folder has that of the folder which `vlm convert from-hf` makes of it.

    Raises:
        UserError: the folder holds no model, or one of its files is missing or damaged.
    """
    found = folder_tensors(folder, read_folder_config(folder))
    tensors = {
        name: tensor
        for name, tensor in sorted(found.items())
        if name.partition(".")[0] in components
    }
    # Hashing and reading leave Python's lock: a core each.
    with ThreadPoolExecutor() as pool:
        digests = pool.map(_digest, tensors.values())
        whole = sha256()
        for (name, tensor), digest in zip(tensors.items(), digests, strict=True):
            whole.update(f"{name} {tensor.dtype} {list(tensor.shape)} {digest}\n".encode())
    return whole.hexdigest()


def _digest(tensor: StoredTensor) -> str:
    digest = sha256()
    for piece in tensor.pieces():
        digest.update(piece)
    return digest.hexdigest()
