"""The service layer: a policy in front of a service, a streamed model behind an API.

    import thesis_serve

    sequencer = thesis_serve.LiveSequencer("bid-price", workers=4, slo_s=0.2)
    control = thesis_serve.AdmissionController(sequencer)
    app = thesis_serve.SequencerMiddleware(app, control)  # any ASGI application

    async with thesis_serve.ModelService("smollm2", 96 * 2**20, slo_s=20) as service:
        app = thesis_serve.openai_api(service)  # for uvicorn, or any ASGI server

`admission` decides in front of a service; `model` serves a streamed model.
"""

import lazy_loader

import thesis_lib  # noqa: F401  sets how OpenMP waits, before torch is loaded

# The stub beside this file says where each name is; a name is imported on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
