# crishim as an image: one static binary and nothing else, to copy it from onto a node, whose mount
# namespace it has to run in. GOLANG names the image that it is built in.
ARG GOLANG=golang:1.26-bookworm
FROM ${GOLANG} AS build
ARG VERSION=unknown
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# The native engine's helper, which is C in part, is embedded in the daemon.
RUN hack/helper.sh "$(go env GOARCH)" "${VERSION}"
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION}" -o /crishim ./cmd/shim

FROM scratch
COPY --from=build /crishim /crishim
ENTRYPOINT ["/crishim"]
CMD ["serve"]
