"""The worker: the base model with token-level gating of rank-one components, behind gRPC.

Reading order: `bootstrap` wires everything, `generation` is the one use case, `engine` runs the steps, `lora` and
`kernels` hold what makes a step's linears depend on each request's plan.
"""
