"""Where the halves meet: a streamed model, behind the sequencer, for many clients.

from thesis_serve import ModelService, openai_api

async with ModelService("smollm2", 96 * 2**20, policy="bid-price", slo_s=20) as service:
    app = openai_api(service)  # for uvicorn, or any server of ASGI
"""

from .api import listen as listen
from .api import openai_api as openai_api
from .api import serve_api as serve_api
from .service import Ask as Ask
from .service import ModelService as ModelService
