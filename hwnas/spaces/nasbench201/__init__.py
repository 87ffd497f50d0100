from hwnas.spaces.nasbench201.encoding import NasBench201 as NasBench201
