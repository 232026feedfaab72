"""The contract between agents, scheduler and operators: generated from the .proto files beside it by `make proto`."""
