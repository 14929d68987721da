"""k-means of the images of each class over a loader that is gone through again and again: no image is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import sending_device, total_over_ranks
from ..functional import class_sums

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: Goes through the images once, in float64: rows (M, D) and class indices (M,).
OnePass = Callable[[str], Iterator[tuple[Tensor, Tensor]]]


class ClassKMeans:
    """Centres of the images of each class, and the passes that move them.

    With a process group each rank passes over its own share, and one sum over the ranks after each pass leaves the same centres
    on all of them. Distances and sums are float64.

    Args:
        one_pass: goes through the images.
        num_classes: the number of classes, K.
        per_class: how many prototypes each class has, P.
        pixels: how many pixels an image has, D.
        device: where to compute, of a kind that knows float64.
        group: the ranks, or None.
    """

    def __init__(
        self,
        one_pass: OnePass,
        num_classes: int,
        per_class: int,
        pixels: int,
        device: torch.device,
        group: ProcessGroup | None,
    ) -> None:
        self.one_pass = one_pass
        self.group = group
        self.centres = torch.zeros(num_classes, per_class, pixels, dtype=torch.float64, device=device)
        self.counts = torch.zeros(num_classes, per_class, dtype=torch.float64, device=device)

    def seed(self, number: int) -> None:
        """Choose the first centres by k-means++ (Arthur and Vassilvitskii 2007), one in each pass.

        An image becomes the next centre of its class with a probability that goes with its squared distance to the nearest centre
        of the class so far; the first one is any. In one pass: of log D² plus Gumbel noise the largest wins. Where each image of
        a class is a centre already, the class's first centre is repeated.

        Args:
            number: of the random numbers; each rank has its own.
        """
        rank = 0 if self.group is None else self.group.rank()
        noise = torch.Generator().manual_seed(number + 1_000_003 * rank)
        for chosen in range(self.centres.shape[1]):
            best = torch.full_like(self.counts[:, 0], -math.inf)
            rows_of_best = torch.zeros_like(self.centres[:, 0])
            for rows, classes in self.one_pass("seeds"):
                uniform = torch.rand(len(rows), dtype=torch.float64, generator=noise)
                keys = -(-uniform.clamp(min=1e-300).log()).log().to(rows.device)
                if chosen:
                    keys = keys + self._nearest(rows, classes, chosen)[0].log()
                batch_best = torch.full_like(best, -math.inf).scatter_reduce(0, classes, keys, "amax")
                wins = (keys == batch_best[classes]) & (keys > best[classes])
                best[classes[wins]], rows_of_best[classes[wins]] = keys[wins], rows[wins]
            best, rows_of_best = self._best_of_ranks(best, rows_of_best)
            first = self.centres[:, 0] if chosen else rows_of_best
            self.centres[:, chosen] = rows_of_best.where(best.isfinite().unsqueeze(1), first)

    def refine(self, iterations: int, tolerance: float) -> None:
        """Move the centres to the means of the images that are nearest to them, over and over (Lloyd 1982).

        A centre that no image is nearest to stays, and becomes the fullest one of its class in the end.

        Args:
            iterations: at most so many passes.
            tolerance: stop where the centres of no class move by more, as a sum of squares, than this share of the class's
                variance per pixel; 0: where none moves.

        Raises:
            ValueError: there were no images, on any rank.
        """
        num_classes, several, pixels = self.centres.shape
        for _ in range(iterations):
            # Columns: the sum of the images, how many there are, and the sum of their squared norms.
            totals = self.centres.new_zeros(num_classes * several, pixels + 2)
            for rows, classes in self.one_pass("means"):
                position = classes * several + self._nearest(rows, classes, several)[1]
                columns = [rows, torch.ones_like(rows[:, :1]), rows.square().sum(1, keepdim=True)]
                # Only the centres of this batch are touched, so that a thousand classes cost no more than the images do.
                present, place = torch.unique(position, return_inverse=True)
                totals[present] += class_sums(torch.cat(columns, 1), F.one_hot(place, len(present)))
            totals = self._total(totals).unflatten(0, (num_classes, several))
            sums, self.counts, squares = totals[..., :-2], totals[..., -2], totals[..., -1]
            if not bool(self.counts.any()):
                raise ValueError(
                    "loader: expected the images again, got none when going through it once more; pass a loader that starts anew "
                    "each time"
                )
            means = sums / self.counts.clamp(min=1).unsqueeze(2)
            means = means.where(self.counts.unsqueeze(2) > 0, self.centres)
            moved = (means - self.centres).square().flatten(1).sum(1)
            self.centres = means
            number = self.counts.sum(1).clamp(min=1)
            variance = squares.sum(1) / number - (sums.sum(1) / number.unsqueeze(1)).square().sum(1)
            if bool((moved <= tolerance * (variance / pixels).clamp(min=0)).all()):
                break
        fullest = self.centres[torch.arange(num_classes, device=totals.device), self.counts.argmax(1)]
        seen = (self.counts.sum(1) > 0).reshape(-1, 1, 1)
        filled = torch.where(self.counts.unsqueeze(2) > 0, self.centres, fullest.unsqueeze(1))
        self.centres = filled * seen

    def _nearest(self, rows: Tensor, classes: Tensor, several: int) -> tuple[Tensor, Tensor]:
        """The squared distance to the nearest of the class's first centres, and which it is: (M,) twice."""
        distances = [
            (rows - self.centres[:, each][classes]).square().sum(1) for each in range(several)
        ]  # one at a time: M · P · D numbers would not fit for large images
        nearest = torch.stack(distances, 1).min(1)
        return nearest.values, nearest.indices

    def _best_of_ranks(self, best: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        if self.group is None:
            return best, rows
        keys = best.new_zeros(self.group.size(), len(best))
        keys[self.group.rank()] = best
        largest = self._total(keys).max(0)
        own = (largest.indices == self.group.rank()).unsqueeze(1)
        return largest.values, self._total(rows.where(own, 0))

    def _total(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks."""
        if self.group is None:
            return tensor
        sent = tensor.to(sending_device(tensor.device, self.group))
        return total_over_ranks(sent, self.group).to(tensor.device)
