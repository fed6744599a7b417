"""Disks that fail and processes that die, for several test files."""

import os
import pathlib
import subprocess
import sys

import fmnist_jax

ROOT = str(pathlib.Path(fmnist_jax.__file__).parent.parent)


def names(directory):
  return sorted(os.listdir(directory))


def fail_with(number):
  def fail(*_, **__):
    raise OSError(number, os.strerror(number))
  return fail


def start(code):
  process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True,
                             env=os.environ | {'PYTHONPATH': ROOT})
  assert process.stdout.readline() == 'ready\n'
  return process


def kill(process):
  process.kill()
  process.wait()
  process.stdout.close()
