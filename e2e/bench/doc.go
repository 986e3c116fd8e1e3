// Package bench measures crishim as a kubelet meets it, beside what cannot be faster: the Docker API alone and the CNI plugins
// alone, doing the same work on the same machine in turns. `make bench` runs it and prints one table.
//
// A "side" does the work of a pod's life: crishim by CRI, a peer (another CRI server) by CRI, raw Docker by replaying the
// very create bodies that crishim sends, CNI by libcni. Rounds go from side to side, and what is compared are the medians of
// each round: Docker's own times wander by a third within hours. Nothing here fails for being slow; the last column of the
// table says whether the goals of docs/performance.md were met.
//
// Environment: COUNT (pods a round, 6), ROUNDS (5), PODS (pods of the dense node, 100), MIB (of a stream, 128), PEER
// (unix:// socket of another CRI server, with PEER_IMAGE where it cannot pull from the harness's registry; or containerd: a
// current one is built and started on the same network), or PEER_START (a shell command that starts one on the very Docker
// Engine and network, see peerOf).
package bench
