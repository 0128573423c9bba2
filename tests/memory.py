"""How much memory a piece of work takes, counted tensor by tensor."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens.model_bridge import TransformerBridge


class Memory(TorchDispatchMode):
    """Counts the bytes of all tensors alive beside a model's, and remembers the most there were."""

    def __init__(self, model: TransformerBridge) -> None:
        super().__init__()
        self.now = self.most = 0
        own = (*model.parameters(), *model.buffers())
        self._known = {tensor.untyped_storage()._cdata for tensor in own}

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._known:
                    self._known.add(key)
                    weakref.finalize(storage, self._forget, key, size)
                    self.now += size
                    self.most = max(self.most, self.now)
        return result
