from hwnas.spaces.fbnet.encoding import FBNet as FBNet
