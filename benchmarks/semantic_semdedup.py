"""The peer of benchmarks.semantic: SemDeDup as published, with scikit-learn's k-means.

Source: Abbas et al. 2023, arXiv:2303.09540, section 3 and its pseudo code: in each cluster a
document goes if the cosine with any document before it reaches the threshold.

    python benchmarks/semantic_semdedup.py IN.parquet KEPT.npy CLUSTERS THRESHOLD
"""

import sys

import numpy as np
import pyarrow.parquet as pq
from sklearn.cluster import KMeans

source, kept_file, num_clusters, threshold = sys.argv[1:]
column = pq.read_table(source, columns=["embedding"])["embedding"].combine_chunks()
vectors = column.flatten().to_numpy().reshape(len(column), -1).copy()
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
means = KMeans(int(num_clusters), n_init=1, max_iter=20, random_state=0).fit(vectors)
kept = np.ones(len(vectors), bool)
for number in range(int(num_clusters)):
    mine = np.flatnonzero(means.labels_ == number)
    similar = np.triu(vectors[mine] @ vectors[mine].T, k=1)
    kept[mine] = similar.max(axis=0, initial=-1) < float(threshold)
np.save(kept_file, kept)
