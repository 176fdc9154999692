"""k-means for k = 2..K by scikit-learn, one site and one seed after the other."""

import numpy as np
from serve import serve
from sklearn.cluster import KMeans


def run(arrays):
    x_SNC, max_k = arrays["x"], int(arrays["max_k"])
    last = []
    for x in x_SNC:
        for seed in range(int(arrays["restarts"])):
            for k in range(2, max_k + 1):
                fit = KMeans(k, n_init=1, max_iter=20, random_state=seed).fit(x)
            last.append(fit.inertia_ / len(x))
    return {"objective": np.mean(last)}


serve(run)
