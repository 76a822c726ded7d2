// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/registry-cache/extension/test/bench/result"
)

// The engines.
const (
	direct = result.Direct
	stock  = result.Stock
	nginx  = result.Nginx
	ours   = result.Ours
)

// caches are the engines with a cache.
var caches = []string{stock, ours}

type engineOptions struct {
	// Root is the folder of the volume; empty means a new volume that close deletes.
	Root string
	// TLS enables https.
	TLS bool
	// RevalidateAfter is a setting of this server; the stock registry revalidates with each request. Default: 10 s.
	RevalidateAfter time.Duration
	// TTL is the time to live: after the last use for this server, after storing for the stock registry. Default: 168 h.
	TTL time.Duration
	// HighWatermark and LowWatermark are settings of this server, in percent of the volume. Default: 99 and 98, so that
	// other files on the disk of this machine have no effect.
	HighWatermark, LowWatermark int
}

// engine is a running cache.
type engine struct {
	*process
	name     string
	url      string
	debugURL string
	ca       string // PEM file; empty without TLS
	logFile  string
	started  time.Time // before the start of the process
	dir      string    // deleted by close
}

// The configuration of the stock registry by the public extension.
var stockConfig = template.Must(template.New("stock").Parse(`version: 0.1
log: {fields: {service: registry}}
storage:
  delete: {enabled: true}
  filesystem: {rootdirectory: {{.Root}}}
  tag: {concurrencylimit: 5}
http:
  addr: {{.Address}}
  debug: {addr: "{{.Debug}}", prometheus: {enabled: true, path: /metrics}}
  draintimeout: 25s
{{- if .CertFile}}
  tls: {certificate: {{.CertFile}}, key: {{.KeyFile}}}
{{- end}}
  headers: {X-Content-Type-Options: [nosniff]}
health: {storagedriver: {enabled: true, interval: 10s, threshold: 3}}
proxy: {remoteurl: {{.RemoteURL}}, ttl: {{.TTL}}}
`))

var oursConfig = template.Must(template.New("ours").Parse(`
upstream: {host: docker.io, remoteURL: {{.RemoteURL}}, caFile: {{.CAFile}}}
listen: {address: "{{.Address}}"{{if .CertFile}}, tls: {certFile: {{.CertFile}}, keyFile: {{.KeyFile}}}{{end}}}
debug: {address: "{{.Debug}}"}
storage: {root: {{.Root}}, highWatermark: {{.HighWatermark}}, lowWatermark: {{.LowWatermark}}}
garbageCollection: {ttl: {{.TTL}}}
tags: {revalidateAfter: {{.RevalidateAfter}}}
`))

// nginx as an operator would configure it as a cache: one request to the upstream for concurrent clients, and connections to
// the upstream that are used again. It caches blobs and manifests by digest.
var nginxConfig = template.Must(template.New("nginx").Parse(`
daemon off;
master_process off;
pid {{.Dir}}/pid;
error_log stderr;
events {}
http {
  access_log off;
  sendfile on;
  tcp_nopush on;
  proxy_temp_path {{.Root}}/tmp;
  client_body_temp_path {{.Dir}}/body;
  fastcgi_temp_path {{.Dir}}/fastcgi;
  scgi_temp_path {{.Dir}}/scgi;
  uwsgi_temp_path {{.Dir}}/uwsgi;
  proxy_cache_path {{.Root}}/cache levels=1:2 keys_zone=content:10m max_size=50g inactive=7d use_temp_path=off;
  upstream origin { server {{.RemoteAddress}}; keepalive 16; }
  server {
    listen {{.Address}};
    location / {
      proxy_pass https://origin;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host {{.RemoteAddress}};
      proxy_ssl_trusted_certificate {{.CAFile}};
      proxy_ssl_verify on;
      proxy_ssl_name 127.0.0.1;
      proxy_ssl_session_reuse on;
      proxy_cache content;
      proxy_cache_lock on;
      proxy_cache_valid 200 7d;
      proxy_buffers 16 64k;
      proxy_buffer_size 64k;
      proxy_busy_buffers_size 128k;
    }
  }
}
`))

// engine starts a cache of the upstream and waits for its first answer. The caller calls close.
func (b *bench) engine(ctx context.Context, name string, o engineOptions) (*engine, error) {
	dir, err := os.MkdirTemp(b.dir, name+"-")
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	e := &engine{name: name, url: "http://" + ports[0], debugURL: "http://" + ports[1], logFile: dir + ".log", dir: dir}
	values := map[string]any{
		"RemoteURL": b.origin.url, "CAFile": b.origin.ca, "Address": ports[0], "Debug": ports[1],
		"Root": o.Root, "RevalidateAfter": cmp.Or(o.RevalidateAfter, 10*time.Second), "CertFile": "", "KeyFile": "",
		"RemoteAddress": strings.TrimPrefix(b.origin.url, "https://"), "Dir": dir, "TTL": cmp.Or(o.TTL, 168*time.Hour), "HighWatermark": cmp.Or(o.HighWatermark, 99), "LowWatermark": cmp.Or(o.LowWatermark, 98),
	}
	if o.Root == "" {
		values["Root"] = filepath.Join(dir, "root")
	}
	if o.TLS {
		certFile, keyFile, err := writeCertificate(dir)
		if err != nil {
			return nil, err
		}
		values["CertFile"], values["KeyFile"], e.ca, e.url = certFile, keyFile, certFile, "https://"+ports[0]
	}
	options := processOptions{CPUs: serverCPU, LogFile: e.logFile}
	configFile := filepath.Join(dir, "config.yaml")
	config := oursConfig
	switch name {
	case stock:
		config = stockConfig
		options.Program, options.Args = b.programs["stock"], []string{"serve", configFile}
		options.Env = []string{"SSL_CERT_FILE=" + b.origin.ca, "OTEL_TRACES_EXPORTER=none"}
	case nginx:
		config = nginxConfig
		if options.Program, err = exec.LookPath("nginx"); err != nil {
			return nil, fmt.Errorf("the Debian package nginx-light is missing: %w", err)
		}
		options.Args = []string{"-c", configFile, "-p", dir}
		if err := os.MkdirAll(filepath.Join(dir, "root", "tmp"), 0o700); err != nil {
			return nil, err
		}
	default:
		options.Program, options.Args = b.programs["registry-cache"], []string{"serve", "--config", configFile}
	}
	var content bytes.Buffer
	if err := config.Execute(&content, values); err != nil {
		return nil, err
	}
	if err := os.WriteFile(configFile, content.Bytes(), 0o600); err != nil {
		return nil, err
	}
	e.started = time.Now()
	if e.process, err = startProcess(ctx, options); err != nil {
		return nil, err
	}
	c, err := newClient(e.url, e.ca)
	if err != nil {
		return nil, errors.Join(err, e.close())
	}
	defer c.close()
	if err := poll(ctx, startTimeout, func() error { return c.ping(ctx) }); err != nil {
		return nil, errors.Join(fmt.Errorf("starting %s (%s): %w", name, e.logFile, err), e.close())
	}
	return e, nil
}

// engineWithoutLayer creates a new image with one layer of size bytes in the upstream, and starts an engine that stores
// its manifest but not its layer. A client always requests the manifest first, and the engine uses it to assign blobs to
// repositories.
func (b *bench) engineWithoutLayer(ctx context.Context, name string, o engineOptions, size int64) (*engine, image, error) {
	i, err := b.push(ctx, size)
	if err != nil {
		return nil, image{}, err
	}
	e, err := b.engine(ctx, name, o)
	if err != nil {
		return nil, image{}, err
	}
	c, err := newClient(e.url, e.ca)
	if err == nil {
		_, err = c.manifest(ctx, i.repository, i.digest)
		c.close()
	}
	if err != nil {
		return nil, image{}, errors.Join(err, e.close())
	}
	return e, i, nil
}

// close stops the engine, and deletes its volume unless the volume was given.
func (e *engine) close() error {
	var err error
	if e.process != nil {
		err = e.stop()
	}
	return errors.Join(err, os.RemoveAll(e.dir))
}

// writeCertificate creates a self-signed certificate for 127.0.0.1.
func writeCertificate(dir string) (certFile, keyFile string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return "", "", err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", "", err
	}
	certFile, keyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	return certFile, keyFile, errors.Join(
		os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}), 0o644),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
}
