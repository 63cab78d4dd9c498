"""Initializers whose data lie in a weight file: ONNX's external data."""

from onnx import TensorProto, helper

from starflow.export.onnx_graph.weight_file import StoredTensor


def refer(tensor: TensorProto, stored: StoredTensor, location: str) -> TensorProto:
    """Let an initializer take its data from a weight file, at `location` relative to the graph's folder."""
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", stored.offset), ("length", stored.length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def external_tensor(stored: StoredTensor, location: str) -> TensorProto:
    """A new initializer for a stored tensor, under its name."""
    kind = helper.np_dtype_to_tensor_dtype(stored.dtype)
    return refer(TensorProto(name=stored.name, data_type=kind, dims=stored.shape), stored, location)
