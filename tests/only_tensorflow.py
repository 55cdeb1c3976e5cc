"""Loads an exported model in a process that has TensorFlow and ScaNN and nothing of ours: what a server is.

python -I only_tensorflow.py MODEL REQUESTS: reads a JSON list of {"signature": …, "inputs": {…}}, prints the answers as JSON.
"""

import importlib
import importlib.abc
import json
import sys

FORBIDDEN = {"transforms", "schemas", "pipelines", "tests", "apache_beam", "tensorflow_recommenders", "pyarrow", "tf_keras"}


class Refuse(importlib.abc.MetaPathFinder):
    """Makes as if these packages were not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main(model: str, requests: str) -> None:
    """Answers the requests in a file."""
    sys.meta_path.insert(0, Refuse())
    import tensorflow as tf

    importlib.import_module("scann.scann_ops.py.scann_ops")  # Registers ScaNN's ops.
    loaded = tf.saved_model.load(model)
    with open(requests) as file:
        asked = json.load(file)
    answers = []
    for each in asked:
        function = loaded.signatures[each["signature"]]
        inputs = {
            name: tf.reshape(tf.constant(value, tf.string), [len(value), -1] if name == "history" else [-1])
            for name, value in each["inputs"].items()
        }
        found = {name: value.numpy() for name, value in function(**inputs).items()}
        answers.append(
            {
                "item_id": [[item.decode() for item in row] for row in found["item_id"]],
                "score": found["score"].tolist(),
                "source": [source.decode() for source in found["source"]],
            }
        )
    assert not FORBIDDEN & {name.split(".")[0] for name in sys.modules}
    signatures = {
        name: {
            "inputs": {
                each: [spec.dtype.name, spec.shape.as_list()] for each, spec in function.structured_input_signature[1].items()
            },
            "outputs": {each: [spec.dtype.name, spec.shape.as_list()] for each, spec in function.structured_outputs.items()},
        }
        for name, function in loaded.signatures.items()
    }
    print(json.dumps({"answers": answers, "signatures": signatures}))


if __name__ == "__main__":
    main(*sys.argv[1:])
