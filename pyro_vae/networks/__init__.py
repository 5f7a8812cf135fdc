"""Networks from (B, num_inputs) to (B, num_outputs): fully connected and convolutional.

Any `nn.Module` of those shapes can be an encoder or a decoder; these are the ones that the command line offers.
"""

from __future__ import annotations

from pyro_vae.networks.base import Activation, Network, check_size
from pyro_vae.networks.convolutional import ConvDecoder, ConvEncoder
from pyro_vae.networks.dense import MLP, Linear

__all__ = ["MLP", "Activation", "ConvDecoder", "ConvEncoder", "Linear", "Network", "check_size"]
