from .clip import Clip as Clip
