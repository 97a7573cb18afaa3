"""The models. Whoever imports one has all of them in timm as well."""

from metaformer.models import registration as registration
