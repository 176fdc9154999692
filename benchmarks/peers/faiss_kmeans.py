"""k-means for k = 2..K by faiss, one site and one seed after the other."""

import faiss
import numpy as np
from serve import serve

faiss.omp_set_num_threads(1)


def run(arrays):
    x_SNC, max_k = arrays["x"], int(arrays["max_k"])
    last = []
    for x in x_SNC:
        x = np.ascontiguousarray(x, dtype=np.float32)
        for seed in range(int(arrays["restarts"])):
            for k in range(2, max_k + 1):
                fit = faiss.Kmeans(
                    x.shape[1],
                    k,
                    niter=20,
                    seed=seed,
                    min_points_per_centroid=1,
                    max_points_per_centroid=len(x),
                )
                fit.train(x)
            distance, _ = fit.index.search(x, 1)
            last.append(distance.mean())
    return {"objective": np.mean(last)}


serve(run)
