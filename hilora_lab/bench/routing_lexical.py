"""The lexical scorers that others use, to compare with: hashed character n-grams under TF-IDF.

Shapes: M samples, N texts, L adapters.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from hilora.covariance import FloatArray

_NUM_BUCKETS = 2**16
_LENGTHS = (3, 4, 5)
_SPACES = re.compile(r"\s+")


def count_ngrams(texts: Sequence[str]) -> Any:
    """How often each hashed character 3-, 4- and 5-gram occurs in each text: CSR `[N, 2^16]`."""
    columns: list[NDArray[np.int64]] = []
    counts: list[NDArray[np.float64]] = []
    for text in texts:
        plain = _SPACES.sub(" ", text.lower()).encode("utf-8", "surrogatepass")
        found = Counter(
            zlib.crc32(plain[start : start + length]) % _NUM_BUCKETS
            for length in _LENGTHS
            for start in range(len(plain) - length + 1)
        )
        columns.append(np.fromiter(found.keys(), dtype=np.int64, count=len(found)))
        counts.append(np.fromiter(found.values(), dtype=np.float64, count=len(found)))
    starts = np.cumsum([0, *map(len, columns)])
    shape = (len(texts), _NUM_BUCKETS)
    return sparse.csr_matrix((np.concatenate(counts), np.concatenate(columns), starts), shape=shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class TfIdfPool:
    """TF-IDF vectors of a pool's samples: sublinear counts, smooth inverse frequencies, unit length."""

    idf: FloatArray
    samples_MG: Any
    summed_LG: Any
    """Unit vectors of the sums by adapter."""
    starts_L: NDArray[np.intp]
    """Where each adapter's samples begin."""

    @classmethod
    def fit(cls, counts_MG: Any, adapter_M: NDArray[np.intp], num_adapters: int) -> TfIdfPool:
        """Fit to n-gram counts of samples that stand adapter by adapter, at least one each."""
        num_samples = counts_MG.shape[0]
        frequencies = np.bincount(counts_MG.indices, minlength=_NUM_BUCKETS)
        idf = 1.0 + np.log((1.0 + num_samples) / (1.0 + frequencies))
        samples_MG = _vectors(counts_MG, idf)
        members = sparse.csr_matrix(
            (np.ones(num_samples), (adapter_M, np.arange(num_samples))), shape=(num_adapters, num_samples)
        )
        return cls(
            idf=idf,
            samples_MG=samples_MG,
            summed_LG=_unit(members @ samples_MG),
            starts_L=np.searchsorted(adapter_M, np.arange(num_adapters)),
        )

    def summed_cosine(self, counts_NG: Any) -> FloatArray:
        """Cosine of texts with the summed vector of each adapter, `[N, L]`."""
        return np.asarray((_vectors(counts_NG, self.idf) @ self.summed_LG.T).todense())

    def nearest_sample(self, counts_NG: Any) -> FloatArray:
        """The largest cosine with a single sample of each adapter, `[N, L]`."""
        cosines_NM = np.asarray((_vectors(counts_NG, self.idf) @ self.samples_MG.T).todense())
        return np.maximum.reduceat(cosines_NM, self.starts_L, axis=1)


def _vectors(counts: Any, idf: FloatArray) -> Any:
    weighted = counts.copy()
    weighted.data = (1.0 + np.log(weighted.data)) * idf[weighted.indices]
    return _unit(weighted)


def _unit(rows: Any) -> Any:
    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    return sparse.diags_array(1.0 / np.where(norms > 0.0, norms, 1.0)).tocsr() @ rows
