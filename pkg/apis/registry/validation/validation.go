// SPDX-License-Identifier: Apache-2.0

// Package validation says what is wrong with a RegistryConfig, and what to write instead.
package validation

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

// maxUpstream is how long the name of a file may be in Linux. A longer upstream would keep gardener-node-agent from
// applying anything at all on the nodes.
const maxUpstream = 255

// ValidateRegistryConfig checks a config in which the defaults are filled in. The paths of the errors start with
// fldPath and name the fields of v1alpha3.
func ValidateRegistryConfig(config *v1alpha3.RegistryConfig, fldPath *field.Path) field.ErrorList {
	cachesPath := fldPath.Child("caches")
	if len(config.Caches) == 0 {
		return field.ErrorList{field.Required(cachesPath, "at least one cache must be given, for example {upstream: docker.io}")}
	}

	var errs field.ErrorList
	unique := uniqueness{upstreams: map[string]bool{}, named: map[string]int{}}
	for i := range config.Caches {
		cache, path := &config.Caches[i], cachesPath.Index(i)

		invalid := validateUpstream(cache.Upstream, path.Child("upstream"))
		if suffix := cache.ServiceNameSuffix; suffix != nil {
			invalid = append(invalid, validateServiceNameSuffix(*suffix, path.Child("serviceNameSuffix"))...)
		}
		if len(invalid) == 0 {
			invalid = unique.validate(config.Caches, i, cachesPath)
		}
		errs = append(errs, invalid...)

		if cache.RemoteURL != nil && *cache.RemoteURL != v1alpha3.DefaultRemoteURL(cache.Upstream) {
			errs = append(errs, validateURL(*cache.RemoteURL, "https://registry.example.com", path.Child("remoteURL"))...)
		}
		if cache.Volume != nil {
			errs = append(errs, validateVolume(cache.Volume, path.Child("volume"))...)
		}
		if cache.GarbageCollection != nil {
			errs = append(errs, validateGarbageCollection(cache.GarbageCollection, path.Child("garbageCollection"))...)
		}
		errs = append(errs, validateReference(cache.SecretReferenceName, path.Child("secretReferenceName"))...)
		errs = append(errs, validateReference(cache.CABundleSecretReferenceName, path.Child("caBundleSecretReferenceName"))...)
		if cache.Proxy != nil {
			errs = append(errs, validateProxy(cache.Proxy, path.Child("proxy"))...)
		}
	}
	return errs
}

// uniqueness finds caches that would get in each other's way.
type uniqueness struct {
	upstreams map[string]bool
	// named has the index of the first cache with an object name. Different object names have different Service names:
	// the one is made from the other.
	named map[string]int
}

// validate compares the cache of that index with those before it.
func (u uniqueness) validate(caches []v1alpha3.RegistryCache, index int, cachesPath *field.Path) field.ErrorList {
	cache, path := &caches[index], cachesPath.Index(index)
	if u.upstreams[cache.Upstream] {
		return field.ErrorList{field.Duplicate(path.Child("upstream"), cache.Upstream)}
	}
	u.upstreams[cache.Upstream] = true
	first, taken := u.named[cache.ObjectName()]
	if !taken {
		u.named[cache.ObjectName()] = index
		return nil
	}
	return field.ErrorList{collision(cache, path, fmt.Sprintf("%s %q", cachesPath.Index(first).Child("upstream"), caches[first].Upstream))}
}

// collision is the error of a cache under path whose object name belongs to another one.
func collision(cache *v1alpha3.RegistryCache, path *field.Path, other string) *field.Error {
	name, value, remedy := "upstream", cache.Upstream, "a serviceNameSuffix (a field of v1alpha3)"
	if cache.ServiceNameSuffix != nil {
		name, value, remedy = "serviceNameSuffix", *cache.ServiceNameSuffix, "another serviceNameSuffix"
	}
	return field.Invalid(path.Child(name), value, fmt.Sprintf("its objects in the Shoot would be named %q like those of %s; give the cache of %q %s",
		cache.ObjectName(), other, cache.Upstream, remedy))
}

func validateUpstream(upstream string, path *field.Path) field.ErrorList {
	const format = "must be host[:port], for example docker.io"
	rest := upstream
	if _, after, found := strings.Cut(rest, "://"); found {
		rest = after
	}
	rest, _, _ = strings.Cut(rest, "/")
	switch {
	case upstream == "":
		return field.ErrorList{field.Required(path, format)}
	case strings.Contains(upstream, "@"):
		// What stands before the @ may be a password.
		return field.ErrorList{field.Invalid(path, field.OmitValueType{}, format+", without user name or password")}
	case strings.Contains(upstream, "://"):
		return field.ErrorList{field.Invalid(path, upstream, withSuggestion(format+", without a scheme", rest))}
	case strings.Contains(upstream, "/"):
		return field.ErrorList{field.Invalid(path, upstream, withSuggestion(format+", without a path", rest))}
	case strings.ToLower(upstream) != upstream:
		return field.ErrorList{field.Invalid(path, upstream, withSuggestion(format+", in lower case", rest))}
	case len(upstream) > maxUpstream:
		return field.ErrorList{field.Invalid(path, upstream, fmt.Sprintf("must have at most %d characters, it is the name of a directory on the nodes", maxUpstream))}
	case !isHostPort(upstream):
		return field.ErrorList{field.Invalid(path, upstream, format+" or registry.example.com:5000")}
	}
	return nil
}

// withSuggestion adds what to write instead, if the host and port that can be read out of the bad value are good.
func withSuggestion(complaint, candidate string) string {
	if candidate = strings.ToLower(candidate); !isHostPort(candidate) {
		return complaint
	}
	return fmt.Sprintf("%s; write %q", complaint, candidate)
}

// isHostPort tells whether s is a DNS name or an IPv4 address in lower case, with or without a port from 1 to 65535.
func isHostPort(s string) bool {
	host, port, hasPort := strings.Cut(s, ":")
	if hasPort {
		number, err := strconv.ParseUint(port, 10, 16)
		// A second spelling of the same port ("0443") would be a second cache of the same registry.
		if err != nil || number == 0 || strconv.FormatUint(number, 10) != port {
			return false
		}
	}
	return len(utilvalidation.IsDNS1123Subdomain(host)) == 0
}

// validateURL checks the URL of a server whose paths are not the Shoot owner's business. example is one that is good.
func validateURL(value, example string, path *field.Path) field.ErrorList {
	format := "must be http or https with a host and an optional port, for example " + example
	parsed, err := url.Parse(value)
	switch {
	case err != nil:
		// The error and the value may hold a password; what url.Parse does not understand cannot be redacted.
		return field.ErrorList{field.Invalid(path, field.OmitValueType{}, format)}
	case parsed.User != nil:
		return field.ErrorList{field.Invalid(path, parsed.Redacted(), format+", without user name or password")}
	case strings.Contains(value, "@"):
		// Without a scheme, what stands before the @ is no user information for url.Parse.
		return field.ErrorList{field.Invalid(path, field.OmitValueType{}, format+", without user name or password")}
	case parsed.RawQuery != "" || parsed.ForceQuery || parsed.Fragment != "":
		return field.ErrorList{field.Invalid(path, field.OmitValueType{}, format+", without query or fragment")}
	case parsed.Scheme != "http" && parsed.Scheme != "https", !isHostPort(parsed.Host):
		return field.ErrorList{field.Invalid(path, value, format)}
	case parsed.Path != "" && parsed.Path != "/":
		return field.ErrorList{field.Invalid(path, value, format+", without a path")}
	}
	return nil
}

func validateProxy(proxy *v1alpha3.Proxy, path *field.Path) field.ErrorList {
	const example = "http://proxy.example.com:3128"
	var errs field.ErrorList
	if proxy.HTTPProxy != nil {
		errs = append(errs, validateURL(*proxy.HTTPProxy, example, path.Child("httpProxy"))...)
	}
	if proxy.HTTPSProxy != nil {
		errs = append(errs, validateURL(*proxy.HTTPSProxy, example, path.Child("httpsProxy"))...)
	}
	if proxy.NoProxy != nil {
		errs = append(errs, validateNoProxy(*proxy.NoProxy, path.Child("noProxy"))...)
	}
	return errs
}

func validateNoProxy(noProxy string, path *field.Path) field.ErrorList {
	for i, entry := range strings.Split(noProxy, ",") {
		if isNoProxyEntry(strings.TrimSpace(entry)) {
			continue
		}
		complaint := fmt.Sprintf("entry %d must be a domain, an IP address or an IP range; separate entries by commas, for example .example.com,10.0.0.0/8", i+1)
		if strings.Contains(noProxy, "@") {
			// Somebody has put a URL here, and what stands before the @ may be a password.
			return field.ErrorList{field.Invalid(path, field.OmitValueType{}, complaint)}
		}
		return field.ErrorList{field.Invalid(path, noProxy, complaint)}
	}
	return nil
}

// isNoProxyEntry tells whether golang.org/x/net/http/httpproxy, which the cache uses, would understand the entry.
func isNoProxyEntry(entry string) bool {
	if _, err := netip.ParsePrefix(entry); err == nil {
		return true
	}
	if _, err := netip.ParseAddr(entry); err == nil {
		return true
	}
	if _, err := netip.ParseAddrPort(entry); err == nil {
		return true
	}
	domain, wildcard := strings.CutPrefix(entry, "*.")
	if !wildcard {
		domain = strings.TrimPrefix(entry, ".")
	}
	return entry == "*" || isHostPort(strings.ToLower(domain))
}

func validateServiceNameSuffix(suffix string, path *field.Path) field.ErrorList {
	if complaints := utilvalidation.IsDNS1123Label(suffix); len(complaints) > 0 || len(suffix) > v1alpha3.MaxServiceNameSuffix {
		return field.ErrorList{field.Invalid(path, suffix, fmt.Sprintf(
			"must have 1 to %d characters, lower case letters, digits and -, and begin and end with a letter or digit, for example docker-hub", v1alpha3.MaxServiceNameSuffix))}
	}
	return nil
}

func validateReference(name *string, path *field.Path) field.ErrorList {
	if name != nil && strings.TrimSpace(*name) == "" {
		return field.ErrorList{field.Invalid(path, *name, "must be the name of an entry of spec.resources, or be left out")}
	}
	return nil
}

func validateVolume(volume *v1alpha3.Volume, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if volume.Size != nil {
		errs = append(errs, validateSize(*volume.Size, path.Child("size"))...)
	}
	if name := volume.StorageClassName; name != nil {
		for _, complaint := range utilvalidation.IsDNS1123Subdomain(*name) {
			errs = append(errs, field.Invalid(path.Child("storageClassName"), *name, "must be the name of a StorageClass: "+complaint))
		}
	}
	return errs
}

func validateSize(size resource.Quantity, path *field.Path) field.ErrorList {
	// Value rounds up, so only a fraction of a byte differs from it: "10m" is a hundredth of a byte.
	whole := resource.NewQuantity(size.Value(), size.Format)
	switch {
	case size.Sign() <= 0:
		return field.ErrorList{field.Invalid(path, size.String(), "must be greater than 0, for example 10Gi")}
	case whole.Cmp(size) != 0:
		return field.ErrorList{field.Invalid(path, size.String(), "must be a whole number of bytes, for example 10Gi")}
	}
	return nil
}

func validateGarbageCollection(gc *v1alpha3.GarbageCollection, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if ttl := gc.TTL; ttl != nil && ttl.Duration < 0 {
		errs = append(errs, field.Invalid(path.Child("ttl"), ttl.Duration.String(), "must not be negative, for example 168h; 0s means that nothing is ever deleted"))
	}
	high := int32(v1alpha3.DefaultHighWatermark)
	if gc.HighWatermark != nil {
		if high = *gc.HighWatermark; high < 1 || high > 100 {
			return append(errs, field.Invalid(path.Child("highWatermark"), high, "must be a percentage of the volume from 1 to 100, for example 90"))
		}
	}
	if low := gc.LowWatermark; low != nil && (*low < 0 || *low >= high) {
		errs = append(errs, field.Invalid(path.Child("lowWatermark"), *low, fmt.Sprintf("must be a percentage of the volume from 0 to %d, below highWatermark, which is %d", high-1, high)))
	}
	return errs
}
