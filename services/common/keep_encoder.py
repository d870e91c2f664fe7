"""`python -m services.common.keep_encoder ENCODER FOLDER`: convert an encoder now, for services that start later.

An image is built with its encoder converted, so that no container does it again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hilora.errors import HiloraError, InvalidInput
from services.common.imports import leave_out_training_packages
from services.common.kept_encoders import KeptEncoders
from services.common.sequence_encoder import EncoderBackend, SentenceTransformerEncoder, locate_encoder


def keep_encoder(encoder: str, folder: Path) -> str:
    """Have an encoder's conversion in a folder; returns the encoder's id.

    Raises:
        InvalidInput: `unknown_encoder`, `encoder_backend_unavailable`, or `encoder_not_kept`, if the folder cannot be
            written or the encoder is of a kind that is not kept.
    """
    loaded = SentenceTransformerEncoder(encoder, backend=EncoderBackend.OPENVINO, kept_folder=folder)
    if KeptEncoders(folder).find(Path(locate_encoder(encoder))) is None:
        raise InvalidInput(
            f"The encoder {encoder!r} could not be kept in {folder}.",
            code="encoder_not_kept",
            remedy="Name an encoder that is a folder and has a fast tokeniser, and a folder that can be written.",
            place="encoder",
        )
    return loaded.encoder_id


def main(arguments: list[str]) -> int:
    """Command line entry; returns the exit code."""
    if len(arguments) != 2:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    leave_out_training_packages()
    try:
        sys.stdout.write(f"{keep_encoder(arguments[0], Path(arguments[1]))}\n")
    except HiloraError as error:
        sys.stderr.write(f"{error.code}: {error.message} {error.remedy}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
