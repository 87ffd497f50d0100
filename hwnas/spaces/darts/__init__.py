from hwnas.spaces.darts.encoding import Darts as Darts
