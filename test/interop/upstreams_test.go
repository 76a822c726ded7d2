// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"golang.org/x/crypto/bcrypt"
)

// Credentials of upstreams that require authentication.
const (
	upstreamUsername = "interop"
	upstreamPassword = "correct horse"
)

// upstream is a kind of registry.
type upstream struct {
	name string // unique
	// description describes the programs of the upstream, with their versions.
	description func(programs) string
	// start starts an empty registry whose files are in the empty directory dir.
	start func(ctx context.Context, s *suite, dir string) (*runningUpstream, error)
}

// runningUpstream is a registry that accepts requests.
type runningUpstream struct {
	pull registry // for clients and for the cache
	push registry // for the suite
	// stop ends everything that listens on the address of pull. It can be called more than once.
	stop func() error
	// close ends all parts of the upstream.
	close func() error
}

func upstreams() []upstream {
	return []upstream{
		{"zot", versions("zot"), startZot},
		{"docker-registry 2.8", versions("docker-registry"), startDockerRegistry},
		{"distribution 3.1", versions("distribution"), startDistribution("")},
		{"distribution 3.1, Basic authentication", versions("distribution"), startBasic},
		{"distribution 3.1, token authentication", versions("distribution"), startToken},
		{"go-containerregistry", func(p programs) string { return "go-containerregistry " + p["crane"].version }, startGGCR},
		{"nginx with TLS, HTTP 2 and gzip", versions("nginx", "docker-registry"), startNginx},
		{"registry-cache", versions(cacheProgram, "distribution"), startChain},
	}
}

// versions describes programs: "nginx 1.22.1 in front of docker-registry 2.8.2".
func versions(names ...string) func(programs) string {
	return func(p programs) string {
		var parts []string
		for _, name := range names {
			parts = append(parts, strings.TrimSpace(name+" "+p[name].version))
		}
		return strings.Join(parts, " in front of ")
	}
}

// single returns an upstream that consists of one server.
func single(r registry, s *server) *runningUpstream {
	return &runningUpstream{pull: r, push: r, stop: s.stop, close: s.stop}
}

// startZot starts zot without extensions.
func startZot(ctx context.Context, s *suite, dir string) (*runningUpstream, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(map[string]any{
		"distSpecVersion": "1.0.1",
		"storage":         map[string]any{"rootDirectory": filepath.Join(dir, "content"), "gc": false},
		"http":            map[string]any{"address": host, "port": port},
		"log":             map[string]any{"level": "info"},
	})
	if err != nil {
		return nil, err
	}
	if err := writeFiles(dir, map[string]string{"zot.json": string(config)}); err != nil {
		return nil, err
	}
	r := registry{address: address}
	program, err := startServer(ctx, dir, "zot", r.answers, s.programs["zot"].path, "serve", filepath.Join(dir, "zot.json"))
	if err != nil {
		return nil, err
	}
	return single(r, program), nil
}

// startDockerRegistry starts the registry of the distribution project in version 2.
func startDockerRegistry(ctx context.Context, s *suite, dir string) (*runningUpstream, error) {
	return startRegistry(ctx, s, dir, "docker-registry", "")
}

// startDistribution starts the registry of the distribution project in version 3, with additional lines of configuration.
func startDistribution(additional string) func(context.Context, *suite, string) (*runningUpstream, error) {
	return func(ctx context.Context, s *suite, dir string) (*runningUpstream, error) {
		return startRegistry(ctx, s, dir, "distribution", additional)
	}
}

func startRegistry(ctx context.Context, s *suite, dir, name, additional string) (*runningUpstream, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	config := fmt.Sprintf(`version: 0.1
storage:
  filesystem: {rootdirectory: %q}
http: {addr: %q, secret: interop}
%s`, filepath.Join(dir, "content"), address, additional)
	if err := writeFiles(dir, map[string]string{name + ".yaml": config}); err != nil {
		return nil, err
	}
	r := registry{address: address}
	program, err := startServer(ctx, dir, name, r.answers, s.programs[name].path, "serve", filepath.Join(dir, name+".yaml"))
	if err != nil {
		return nil, err
	}
	return single(r, program), nil
}

func startBasic(ctx context.Context, s *suite, dir string) (*runningUpstream, error) {
	hash, err := bcrypt.GenerateFromPassword([]byte(upstreamPassword), bcrypt.MinCost)
	if err != nil {
		return nil, err
	}
	if err := writeFiles(dir, map[string]string{"htpasswd": upstreamUsername + ":" + string(hash) + "\n"}); err != nil {
		return nil, err
	}
	u, err := startRegistry(ctx, s, dir, "distribution", fmt.Sprintf("auth: {htpasswd: {realm: interop, path: %q}}\n", filepath.Join(dir, "htpasswd")))
	if err != nil {
		return nil, err
	}
	return u.withCredentials(), nil
}

func startToken(ctx context.Context, s *suite, dir string) (*runningUpstream, error) {
	tokens, err := startTokenServer(upstreamUsername, upstreamPassword)
	if err != nil {
		return nil, err
	}
	keys, err := tokens.writeKeys(dir)
	if err != nil {
		tokens.close()
		return nil, err
	}
	u, err := startRegistry(ctx, s, dir, "distribution", fmt.Sprintf("auth: {token: {realm: %q, service: %q, issuer: %q, jwks: %q}}\n", tokens.realm(), tokenService, tokenIssuer, keys))
	if err != nil {
		tokens.close()
		return nil, err
	}
	stop := u.stop
	u.stop = func() error {
		tokens.close()
		return stop()
	}
	u.close = u.stop
	u.pull.address, u.push.address = withName(u.pull.address), withName(u.push.address)
	return u.withCredentials(), nil
}

func (u *runningUpstream) withCredentials() *runningUpstream {
	for _, r := range []*registry{&u.pull, &u.push} {
		r.username, r.password = upstreamUsername, upstreamPassword
	}
	return u
}

// startGGCR starts the registry of go-containerregistry in this process.
func startGGCR(ctx context.Context, _ *suite, dir string) (*runningUpstream, error) {
	logFile, err := os.Create(filepath.Join(dir, "go-containerregistry.log"))
	if err != nil {
		return nil, err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, logFile.Close())
	}
	server := &http.Server{Handler: ggcr.New(ggcr.Logger(log.New(logFile, "", log.LstdFlags))), ReadHeaderTimeout: startTimeout}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	r := registry{address: listener.Addr().String()}
	stop := sync.OnceValue(func() error {
		err := server.Close()
		if serveErr := <-ended; !errors.Is(serveErr, http.ErrServerClosed) {
			err = errors.Join(err, serveErr)
		}
		return errors.Join(err, logFile.Close())
	})
	return &runningUpstream{pull: r, push: r, stop: stop, close: stop}, nil
}

// startNginx starts docker-registry behind nginx with TLS, HTTP/2, compressed responses and buffering.
func startNginx(ctx context.Context, s *suite, dir string) (*runningUpstream, error) {
	behind, err := startDockerRegistry(ctx, s, dir)
	if err != nil {
		return nil, err
	}
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, errors.Join(err, behind.close())
	}
	config := fmt.Sprintf(`daemon off;
master_process off;
worker_processes 1;
pid %[1]q;
error_log stderr;
events {}
http {
	access_log off;
	client_body_temp_path %[2]q;
	proxy_temp_path %[3]q;
	fastcgi_temp_path %[4]q;
	uwsgi_temp_path %[5]q;
	scgi_temp_path %[6]q;
	gzip on;
	gzip_types *;
	gzip_min_length 1;
	gzip_proxied any;
	client_max_body_size 0;
	server {
		listen %[7]s ssl http2;
		ssl_certificate %[8]q;
		ssl_certificate_key %[9]q;
		location / {
			proxy_pass %[10]s;
			proxy_set_header Host $http_host;
			proxy_set_header X-Forwarded-Proto https;
		}
	}
}
`, filepath.Join(dir, "nginx.pid"), filepath.Join(dir, "body"), filepath.Join(dir, "proxy"), filepath.Join(dir, "fastcgi"), filepath.Join(dir, "uwsgi"),
		filepath.Join(dir, "scgi"), address, s.authority.certFile, s.authority.keyFile, behind.pull.url())
	if err := writeFiles(dir, map[string]string{"nginx.conf": config}); err != nil {
		return nil, errors.Join(err, behind.close())
	}
	r := registry{address: address, authority: s.authority}
	nginx, err := startServer(ctx, dir, "nginx", r.answers, s.programs["nginx"].path, "-p", dir, "-c", filepath.Join(dir, "nginx.conf"))
	if err != nil {
		return nil, errors.Join(err, behind.close())
	}
	return &runningUpstream{
		pull: r, push: r, stop: nginx.stop,
		close: func() error { return errors.Join(nginx.stop(), behind.close()) },
	}, nil
}

// startChain starts a cache server before a registry. The registry keeps running when the upstream is stopped.
func startChain(ctx context.Context, s *suite, dir string) (*runningUpstream, error) {
	behind, err := startRegistry(ctx, s, dir, "distribution", "")
	if err != nil {
		return nil, err
	}
	first, err := startCache(ctx, s, behind.pull, dir)
	if err != nil {
		return nil, errors.Join(err, behind.close())
	}
	return &runningUpstream{
		pull: first.registry, push: behind.push, stop: first.server.stop,
		close: func() error { return errors.Join(first.server.stop(), behind.close()) },
	}, nil
}
