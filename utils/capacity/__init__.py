"""What a RAG service needs and costs: sizes, prices, throughput, a plan, and load tests."""
