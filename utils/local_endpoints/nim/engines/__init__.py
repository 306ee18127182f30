"""What runs the models: ONNX Runtime for embedding and reranking, llama.cpp for chat."""
