/* A port of the switch that carries a VLAN: IPv4 leaves it with the tag and is taken from it with
 * the tag alone. ARP goes as it is, since a machine without a VLAN device would answer none in a
 * VLAN.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

int lab_tag(struct __sk_buff *ctx)
{
	if (ctx->protocol == bpf_htons(ETH_P_IP) &&
	    bpf_skb_vlan_push(ctx, bpf_htons(ETH_P_8021Q), LAB_VLAN))
		return TC_ACT_SHOT;
	return TC_ACT_OK;
}

int lab_untag(struct __sk_buff *ctx)
{
	if (!ctx->vlan_present)
		return ctx->protocol == bpf_htons(ETH_P_IP) ? TC_ACT_SHOT : TC_ACT_OK;
	if ((ctx->vlan_tci & 0xfff) != LAB_VLAN || bpf_skb_vlan_pop(ctx))
		return TC_ACT_SHOT;
	return TC_ACT_OK;
}
