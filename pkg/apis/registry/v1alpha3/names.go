// SPDX-License-Identifier: Apache-2.0

package v1alpha3

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

const (
	// UpstreamHostLabel is the label which every object of a cache carries in the Shoot, its PersistentVolumeClaim too.
	// Its value is UpstreamHostValue of the upstream.
	UpstreamHostLabel = "upstream-host"

	// MaxServiceNameSuffix is the largest length of RegistryCache.ServiceNameSuffix, in characters: with "registry-"
	// before it, it is a DNS label.
	MaxServiceNameSuffix = maxLabelValue - len(namePrefix)

	namePrefix = "registry-"
	// maxNameHost keeps "registry-" plus the host within 52 characters: the StatefulSet controller puts the name and a
	// hash of 10 characters and a dash into a label value (kubernetes/kubernetes#64023).
	maxNameHost = 43
	// maxLabelValue is Kubernetes' limit of a label value.
	maxLabelValue = 63
	hashLength    = 5
)

// ObjectName is the name of the Service and of the StatefulSet of the cache of upstream (host[:port]), and the prefix
// of the names of its other objects, unless the cache has a ServiceNameSuffix: "registry-docker-io" for docker.io. It is
// a valid DNS label of at most 52 characters; long upstreams are cut and end in a hash. Two upstreams may have the same
// name ("my.reg.io" and "my-reg.io"); validation refuses them together.
func ObjectName(upstream string) string {
	return namePrefix + strings.NewReplacer(".", "-", ":", "-").Replace(shorten(upstream, maxNameHost))
}

// ObjectName is the name of the StatefulSet of the cache, and the prefix of the names of its other objects, all but the
// Service: "registry-<serviceNameSuffix>", or ObjectName of the upstream. A long suffix is cut and ends in a hash, so
// that it has at most 52 characters.
func (c *RegistryCache) ObjectName() string {
	if c.ServiceNameSuffix == nil {
		return ObjectName(c.Upstream)
	}
	return namePrefix + shorten(*c.ServiceNameSuffix, maxNameHost)
}

// ServiceName is the name of the Service of the cache: "registry-<serviceNameSuffix>", or ObjectName of the upstream. It
// has at most 63 characters and, in contrast to ObjectName, is never cut: a Shoot owner may have written it down.
func (c *RegistryCache) ServiceName() string {
	if c.ServiceNameSuffix == nil {
		return ObjectName(c.Upstream)
	}
	return namePrefix + *c.ServiceNameSuffix
}

// ObjectName is RegistryCache.ObjectName of the cache that the status is about.
func (s *RegistryCacheStatus) ObjectName() string {
	if s.Name == "" {
		return ObjectName(s.Upstream)
	}
	return s.Name
}

// UpstreamHostValue is the value of the label upstream-host for upstream: the upstream itself with "-" in place of ":",
// which a label value cannot hold. More than 63 characters are cut and end in a hash.
func UpstreamHostValue(upstream string) string {
	return strings.ReplaceAll(shorten(upstream, maxLabelValue), ":", "-")
}

func shorten(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return s[:limit-hashLength-1] + "-" + hex.EncodeToString(sum[:])[:hashLength]
}
