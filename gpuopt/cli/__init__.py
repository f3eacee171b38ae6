"""The command ``gpuopt``: a file for each family of commands, which stand in ``--help`` as they stand here."""

from gpuopt.cli.application import Command, app, main
from gpuopt.cli.machine import check, info
from gpuopt.cli.models import evaluate, export, predict
from gpuopt.cli.pictures import compare, landscape, plot
from gpuopt.cli.steering import live, tune
from gpuopt.cli.training import train

__all__ = ["app", "main"]

for command in (train, predict, evaluate, export, plot, compare, landscape, tune, live, info, check):
    app.command(cls=Command)(command)
